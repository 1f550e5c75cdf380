"""
What requests and answers of common tasks look like, whatever model and protocol they meet.

Handlers take and give these types, protocols translate to and from them, so that neither knows of
the other. Nothing here imports torch.
"""
