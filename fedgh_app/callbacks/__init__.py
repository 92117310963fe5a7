"""What happens after each round beside the round."""
