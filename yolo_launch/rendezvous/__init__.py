"""How the machines of a job find each other before training and keep in touch while it runs."""
