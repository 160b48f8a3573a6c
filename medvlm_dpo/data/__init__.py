"""Reading preference pairs and questions, checking them and their images, and making batches of them."""
