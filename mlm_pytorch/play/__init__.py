"""A page on this machine to try models: click words to hide them, see what is expected and what surprises.

Needs the extra `mlm-pytorch[play]` (starlette, uvicorn) for `app` and `server`.
"""
