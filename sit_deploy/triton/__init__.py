"""Triton Inference Server: model repositories of bundles, and a server of one's own to try them with."""
