"""Makes a rank's batches ahead of time: partners, decoded images, loader processes."""

__all__ = ["batch_loader", "image_store", "partners"]
