"""The HTTP layer: routes, errors, streaming, middleware. FastAPI and Starlette begin here."""
