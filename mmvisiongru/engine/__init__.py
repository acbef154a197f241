"""What the training and test scripts do around mmengine's Runner."""
