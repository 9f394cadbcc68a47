"""What is put to a model: prompt sets, tables of prompts, and their rendering as token ids."""
