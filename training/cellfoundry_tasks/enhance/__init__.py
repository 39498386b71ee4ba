"""Read-depth enhancement: what cells of low depth would show at their full depth, by the model and by its peers."""
