"""Measurements that the README quotes; each file is a command with --help."""
