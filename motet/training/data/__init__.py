"""Files in, batches out: reading, recognising, rendering, masking, packing, sampling."""
