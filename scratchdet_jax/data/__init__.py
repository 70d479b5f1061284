"""What training reads: prepared records, decoded images, batches."""
