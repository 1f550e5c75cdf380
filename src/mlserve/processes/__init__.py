"""Replicas in processes of their own: started, watched, talked to over private sockets."""
