package conformance

func wireCases() []testCase { return nil }
