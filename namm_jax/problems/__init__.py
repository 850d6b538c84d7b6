"""Problems: data, and the rule that they obey, one file each."""
