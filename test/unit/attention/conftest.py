"""Tiny models compute fastest on one thread, and need no gradients."""

from support.one_thread import for_tiny_models as for_tiny_models
