"""Records which experts every token chose, and finds those behind a behaviour (functional Token Resonance Imaging)."""
