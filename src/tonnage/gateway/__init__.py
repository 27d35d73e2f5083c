"""The uniform API: one OpenAI-shaped front for whatever engine runs the model."""
