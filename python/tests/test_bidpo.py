"""The package against the program in BIDPO_PROGRAM, on a random model. Run by tests/python.rs."""

import contextlib
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import bidpo


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.before = os.getcwd()
        os.chdir(cls.folder.name)
        bidpo.run(["synth", "--arch", "llama", "--type", "q8_0", "-o", "random.gguf"], quiet=True)

    @classmethod
    def tearDownClass(cls):
        os.chdir(cls.before)
        cls.folder.cleanup()

    def train(self, output, **more):
        given = {"steps": 2, "batch": 4, "template": "none", "quiet": True, **more}
        return bidpo.train("random.gguf", "misconceptions", output, **given)

    def test_training_gives_the_bytes_of_the_command(self):
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            done = self.train("a.gguf", quiet=False)
        self.assertEqual((done["vector"], done["steps"], done["stop"]), ("a.gguf", 2, "finished"))
        self.assertIn("lifted graph equals llama_decode", said.getvalue())
        command = [os.environ["BIDPO_PROGRAM"], "train", "--model", "random.gguf", "--data", "misconceptions", "--steps", "2"]
        subprocess.run([*command, "--batch", "4", "--template", "none", "-o", "b.gguf"], check=True, capture_output=True)
        self.assertEqual(pathlib.Path("a.gguf").read_bytes(), pathlib.Path("b.gguf").read_bytes())

    def test_steering(self):
        self.train("c.gguf")
        model = bidpo.Model("random.gguf", threads=1, template="none")
        plain = model.answer("a", max_tokens=4, temp=0)
        self.assertEqual((plain["n_tokens"], plain["vectors"]), (4, []))
        steered = model.answer("a", {pathlib.Path("c.gguf"): -2.5}, max_tokens=4, temp=0)
        self.assertEqual(steered["vectors"][0]["scale"], -2.5)
        self.assertEqual(model.generate("a", max_tokens=4, temp=0), plain["text"])

    def test_activations(self):
        try:
            import numpy
            import safetensors.numpy
        except ImportError:
            self.skipTest("numpy and safetensors are not installed")
        texts = ["Hello there", "A second one"]
        arrays = bidpo.extract("random.gguf", texts, [1, 2])
        pathlib.Path("p.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
        bidpo.run(["extract", "-m", "random.gguf", "-d", "p.jsonl", "--layers", "1,2", "-o", "p.safetensors"], quiet=True)
        expected = safetensors.numpy.load_file("p.safetensors")
        self.assertEqual(sorted(arrays), sorted(expected))
        for name, array in expected.items():
            numpy.testing.assert_array_equal(arrays[name], array)

    def test_evaluation(self):
        row = {"question": "a", "c": ["b", "d"], "answer": 0}
        pathlib.Path("q.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "question": "e"}) + "\n")
        found = bidpo.eval("choice", "random.gguf", "q.jsonl", choices="c", quiet=True)
        self.assertIsInstance(found, dict)
        self.assertTrue(found)

    def test_errors_have_the_programs_message(self):
        with self.assertRaises(bidpo.BidpoError) as failed:
            bidpo.Model("none.gguf").generate("a")
        self.assertIn("none.gguf", str(failed.exception))
        self.assertNotIn("bidpo: ", str(failed.exception))
        self.assertEqual(failed.exception.exit_code, 1)
        with self.assertRaises(ValueError) as wrong:
            bidpo.Model("random.gguf").generate("a", max_tokens="many")
        self.assertIsInstance(wrong.exception, bidpo.UsageError)
        self.assertIn("--max-tokens", str(wrong.exception))

    def test_ctrl_c_saves_and_ends(self):
        def stop():
            while not re.search(r"^step \d+:", said.getvalue(), re.MULTILINE):
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

        # A shell starts background jobs with the signal ignored, and Python leaves it so.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        said = io.StringIO()
        threading.Thread(target=stop, daemon=True).start()
        with contextlib.redirect_stderr(said), self.assertRaises(KeyboardInterrupt):
            self.train("d.gguf", steps=100000, quiet=False)
        self.assertTrue(pathlib.Path("d.gguf").exists(), said.getvalue())


if __name__ == "__main__":
    unittest.main(verbosity=2, argv=[sys.argv[0], *sys.argv[1:]])
