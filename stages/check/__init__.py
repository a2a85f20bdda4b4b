"""Ahead of the five stages: params.yaml is validated before DVC removes any output."""
