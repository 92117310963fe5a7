"""The Flower app: where federated strategies and pose estimation meet."""
