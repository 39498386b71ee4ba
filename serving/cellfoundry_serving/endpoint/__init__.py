"""The endpoint: Open Inference Protocol V2 and a native JSON form over one in-process token batcher."""
