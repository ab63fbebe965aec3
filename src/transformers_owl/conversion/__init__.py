"""Checkpoints from one form to another, tensor by tensor: releases, fresh Owls, adapters, quantised copies, the Hub."""
