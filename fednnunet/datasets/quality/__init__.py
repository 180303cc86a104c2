"""What a centre's images are like, and likely training problems."""
