"""Stands in for tests that the source archive lacks."""


class ExportTesterMixin:
    pass
