"""Running trained models: recurrent form, sampling, generation."""
