"""Data: records, loading, and augmentation on the device."""
