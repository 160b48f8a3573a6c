"""Backbones: one class and one yaml per model family, all behind base.AbstractBackbone."""
