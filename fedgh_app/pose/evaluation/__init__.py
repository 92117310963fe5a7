"""How well keypoints are found: PCK, heatmap accuracy, what adds up over clients, pictures of errors."""
