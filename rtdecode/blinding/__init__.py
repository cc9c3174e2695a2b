"""Who is shown a score and who a sham: sealed beforehand, drawn apart from whoever runs the session."""
