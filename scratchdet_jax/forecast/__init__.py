"""What a run would cost on machines that are absent, from the programs their compilers make."""
