"""The in-process engine: a small slot-KV scheduler on transformers' public model, cache and mask interfaces."""
