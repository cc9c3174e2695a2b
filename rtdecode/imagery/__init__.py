"""What a person imagines: cue to target, statistics of the task, repeats averaged as they come, identification."""
