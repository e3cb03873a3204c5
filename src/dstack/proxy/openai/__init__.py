"""The OpenAI-compatible API over all models of a project, shared by the server and the gateway.

Start at `app` (an ASGI application), then `passing` (models behind OpenAI's protocol) and `tgi_chat` (models
behind the protocol of Text Generation Inference). `upstream` is how a service is called; `bodies`, `events`, `tgi`
and `templates` are pure.
"""
