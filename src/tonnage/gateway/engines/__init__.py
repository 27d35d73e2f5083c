"""What runs the model: any OpenAI-speaking server, llama.cpp embedded, or a script for tests and demos."""
