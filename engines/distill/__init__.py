"""Distillation of diffusion networks into students of few steps."""
