"""What a person sees: tables, prompts, live status."""
