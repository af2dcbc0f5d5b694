"""Files of requests, in OpenAI's batch format: read, answered by the server's own routes, and written."""
