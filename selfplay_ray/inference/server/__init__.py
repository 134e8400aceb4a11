"""The engine over HTTP, in OpenAI's API and vLLM's dialect of it."""
