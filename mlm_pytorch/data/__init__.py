"""From files to what a trainer reads: `corpus` -> `tokenizer` -> `prepare` -> `store` -> `packing` -> `batches`.

Imports nothing by itself; import the module that you need, such as `mlm_pytorch.data.store`.
"""
