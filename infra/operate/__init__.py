"""What an operator does and asks: status, lanes, topics, publishing."""
