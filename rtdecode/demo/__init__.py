"""`rtdecode demo`: a whole visit on one machine, with a simulated or a recorded participant."""
