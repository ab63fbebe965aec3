"""Demos: captions, chats in the terminal and in the browser, attention maps."""
