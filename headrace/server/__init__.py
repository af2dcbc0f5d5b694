"""HTTP: routes, authentication, OpenAI's schemas and errors, metrics. Knows neither tensors nor KV blocks."""
