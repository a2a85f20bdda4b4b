"""The engine's own kernel for CPUs: C++, compiled on first use."""
