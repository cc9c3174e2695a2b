"""`rtdecode report`: what a session did, and the checks that tell whether its decoding is more than it seems."""
