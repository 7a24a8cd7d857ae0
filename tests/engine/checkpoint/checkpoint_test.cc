#include "engine/checkpoint/checkpoint.h"

#include <doctest/doctest.h>

#include <cstring>
#include <map>
#include <utility>

#include "tests/engine/checkpoint/temporary_directory.h"

namespace cpuinfer::checkpoint {
namespace {

namespace fs = std::filesystem;

// Writes a shard of bf16 vectors: name -> length. Each byte is the first letter of the name.
void write_shard(const fs::path& path, const std::map<std::string, int64_t>& tensors) {
  std::vector<TensorSource> sources;
  for (const auto& [name, length] : tensors)
    sources.push_back({name, DType::kBF16, {length}, [letter = name[0]](int64_t, std::span<std::byte> out) {
                         std::memset(out.data(), letter, out.size());
                       }});
  const auto written = write_safetensors(path, sources);
  REQUIRE_MESSAGE(written.has_value(), written.error().message);
}

// A directory with a config, two shards and their index.
struct Sharded : TemporaryDirectory {
  Sharded() {
    write("config.json", R"({"model_type": "qwen3"})");
    write_shard(path() / "model-1.safetensors", {{"a", 3}, {"b", 1}});
    write_shard(path() / "model-2.safetensors", {{"c", 2}});
    index(R"({"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"})");
  }
  void index(std::string_view weight_map) const {
    write("model.safetensors.index.json",
          R"({"metadata": {"total_size": 12}, "weight_map": )" + std::string(weight_map) + "}");
  }
};

std::string read(const Checkpoint& checkpoint, const TensorRef& tensor) {
  std::string bytes(static_cast<size_t>(tensor.bytes), '?');
  const auto done = checkpoint.read(tensor, 0, std::as_writable_bytes(std::span(bytes)));
  REQUIRE_MESSAGE(done.has_value(), done.error().message);
  return bytes;
}

std::string error_of(const fs::path& directory, ErrorCode code = ErrorCode::kBadInput) {
  const auto checkpoint = Checkpoint::open(directory);
  REQUIRE_MESSAGE(!checkpoint.has_value(), "the checkpoint was accepted");
  CHECK(checkpoint.error().code == code);
  return checkpoint.error().message;
}

TEST_CASE("a single file") {
  const TemporaryDirectory directory;
  directory.write("config.json", R"({"hidden_size": 7})");
  write_shard(directory.path() / "model.safetensors", {{"x", 4}, {"y", 5}});
  auto checkpoint = Checkpoint::open(directory.path());
  REQUIRE_MESSAGE(checkpoint.has_value(), checkpoint.error().message);
  CHECK(checkpoint->directory() == directory.path());
  CHECK(checkpoint->config().find("hidden_size")->as_int() == 7);
  CHECK(checkpoint->generation_config() == nullptr);
  CHECK(checkpoint->file_count() == 1);
  CHECK(checkpoint->total_bytes() == 18);
  CHECK(checkpoint->find("z") == nullptr);
  CHECK(checkpoint->find("") == nullptr);
  const TensorRef* y = checkpoint->find("y");
  REQUIRE(y != nullptr);

  const Checkpoint moved = std::move(*checkpoint);  // references survive
  CHECK(y->name == "y");
  CHECK(y->shape == std::vector<int64_t>{5});
  CHECK(y->bytes == 10);
  CHECK(read(moved, *y) == "yyyyyyyyyy");
  moved.file(y->file).drop_pages(y->file_offset, y->bytes);
  CHECK(read(moved, *y) == "yyyyyyyyyy");
  CHECK(read(moved, *moved.find("x")) == "xxxxxxxx");
  CHECK(moved.read(*y, 10, {}).has_value());
}

TEST_CASE("reading a part of a tensor, and one whose file has become shorter") {
  const TemporaryDirectory directory;
  directory.write("config.json", "{}");
  const fs::path file = directory.path() / "model.safetensors";
  const TensorSource source{
      "x", DType::kBF16, {4}, [](int64_t, std::span<std::byte> out) { std::memcpy(out.data(), "01234567", 8); }};
  REQUIRE(write_safetensors(file, std::span(&source, 1)).has_value());
  const auto checkpoint = Checkpoint::open(directory.path());
  REQUIRE_MESSAGE(checkpoint.has_value(), checkpoint.error().message);
  const TensorRef& x = checkpoint->tensors()[0];
  char part[4] = {};
  const auto out = std::as_writable_bytes(std::span(part));
  REQUIRE(checkpoint->read(x, 3, out).has_value());
  CHECK(std::string_view(part, 4) == "3456");

  fs::resize_file(file, static_cast<uintmax_t>(x.file_offset) + 5);
  REQUIRE(checkpoint->read(x, 1, out).has_value());
  const auto lost = checkpoint->read(x, 2, out);
  REQUIRE(!lost.has_value());
  CHECK(lost.error().code == ErrorCode::kRuntime);
  CHECK(lost.error().message == file.string() + ": cannot read 1 bytes at byte " + std::to_string(x.file_offset + 5) +
                                    ": the file has become shorter (reading tensor \"x\" from its byte 2)");
}

TEST_CASE("shards and generation config") {
  const Sharded directory;
  directory.write("generation_config.json", R"({"top_k": 20})");
  const auto checkpoint = Checkpoint::open(directory.path());
  REQUIRE_MESSAGE(checkpoint.has_value(), checkpoint.error().message);
  CHECK(checkpoint->generation_config()->find("top_k")->as_int() == 20);
  CHECK(checkpoint->file_count() == 2);
  CHECK(checkpoint->tensors().size() == 3);
  CHECK(checkpoint->total_bytes() == 12);
  CHECK(checkpoint->find("a")->file == 0);
  CHECK(checkpoint->find("c")->file == 1);
  CHECK(checkpoint->file_path(1).filename() == "model-2.safetensors");
  CHECK(read(*checkpoint, *checkpoint->find("c")) == "cccc");
}

TEST_CASE("index and shards must agree") {
  const Sharded directory;
  const std::string index = (directory.path() / "model.safetensors.index.json").string();
  const std::string first = (directory.path() / "model-1.safetensors").string();
  const std::string second = (directory.path() / "model-2.safetensors").string();

  directory.index(R"({"a": "model-1.safetensors", "b": "model-1.safetensors"})");
  CHECK(Checkpoint::open(directory.path()).has_value());  // a file that the index does not name is ignored

  directory.index(R"({"a": "model-1.safetensors", "c": "model-2.safetensors"})");
  CHECK(error_of(directory.path()) ==
        first + ": tensor \"b\" is not in model.safetensors.index.json; index and shards are of different checkpoints");

  directory.index(R"({"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"})");
  CHECK(error_of(directory.path()) ==
        first + ": tensor \"b\" should be in model-2.safetensors according to model.safetensors.index.json");

  directory.index(
      R"({"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors", "d": "model-2.safetensors"})");
  CHECK(error_of(directory.path()) ==
        second + ": tensor \"d\" is missing; model.safetensors.index.json says it is in this file");

  directory.index(R"({"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-3.safetensors"})");
  CHECK(error_of(directory.path(), ErrorCode::kNotFound) ==
        (directory.path() / "model-3.safetensors").string() +
            ": cannot be opened: No such file or directory (a shard named in model.safetensors.index.json)");

  // The same tensor in both shards.
  directory.index(R"({"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"})");
  write_shard(second, {{"a", 3}, {"c", 2}});
  CHECK(error_of(directory.path()) ==
        second + ": tensor \"a\" should be in model-1.safetensors according to model.safetensors.index.json");

  fs::resize_file(second, fs::file_size(second) - 1);
  CHECK(error_of(directory.path()).starts_with(second + ": tensor \"c\": data_offsets [6, 10]: the file has only 9"));

  fs::resize_file(index, (32 << 20) + 1);  // sparse
  CHECK(error_of(directory.path()) == index + ": is 32.0 MiB long, expected at most 32.0 MiB");
  directory.index("{}");
  CHECK(error_of(directory.path()) == index + ": weight_map: is empty, expected the tensors of the model");
  directory.index("[]");
  CHECK(error_of(directory.path()) == index + ": weight_map: expected an object, found array");
  directory.write("model.safetensors.index.json", "{}");
  CHECK(error_of(directory.path()) == index + ": weight_map: expected an object, found nothing");
  directory.write("model.safetensors.index.json", "[]");
  CHECK(error_of(directory.path()) == index + ": expected a JSON object, found array");
  directory.index(R"({"a": 1})");
  CHECK(error_of(directory.path()) == index + ": weight_map: \"a\": expected a file name, found integer");
  directory.index(R"({"a": "x.safetensors", "a": "x.safetensors"})");
  CHECK(error_of(directory.path()) == index + ": member \"a\" appears twice in one object");
}

TEST_CASE("a shard's name may not lead out of the directory") {
  const Sharded directory;
  const std::string index = (directory.path() / "model.safetensors.index.json").string();
  for (const char* name : {"../model-1.safetensors", "sub/model-1.safetensors", "/etc/passwd", "..", ".", "",
                           ".hidden.safetensors", "model-1.bin", "a\\u0000.safetensors"}) {
    CAPTURE(name);
    directory.index("{\"a\": \"" + std::string(name) + "\"}");
    CHECK(error_of(directory.path()) == index +
                                            ": weight_map: \"a\": expected the name of a .safetensors file beside "
                                            "the index, found \"" +
                                            name + "\"");
  }
}

TEST_CASE("directories that are no checkpoint") {
  const TemporaryDirectory directory;
  const std::string where = directory.path().string();
  CHECK(error_of(directory.path() / "missing", ErrorCode::kNotFound) == where + "/missing: no such directory");
  const fs::path file = directory.write("model.gguf", "GGUF");
  CHECK(error_of(file) == file.string() +
                              ": is a file; expected a directory with config.json and *.safetensors (a "
                              "Hugging Face checkpoint); GGUF files are not supported");
  CHECK(error_of(directory.write("m.bin", "")).ends_with("(a Hugging Face checkpoint)"));
  // A path through a file cannot even be looked at.
  CHECK(error_of(file / "x", ErrorCode::kNotFound).starts_with(file.string() + "/x: "));
  CHECK(error_of(directory.path(), ErrorCode::kNotFound) ==
        where + "/config.json: cannot be opened: No such file or directory");
  directory.write("config.json", "{");
  CHECK(error_of(directory.path()).starts_with(where + "/config.json: byte "));
  directory.write("config.json", "3");
  CHECK(error_of(directory.path()) == where + "/config.json: expected a JSON object, found integer");
  directory.write("config.json", std::string(16 * 1024 * 1024 + 1, ' '));
  CHECK(error_of(directory.path()) == where + "/config.json: is 16.0 MiB long, expected at most 16.0 MiB");
  directory.write("config.json", "{}");
  fs::remove(directory.path() / "m.bin");
  fs::remove(file);
  CHECK(error_of(directory.path(), ErrorCode::kNotFound) ==
        where + ": no weights: neither model.safetensors nor model.safetensors.index.json");
  directory.write("q.gguf", "");
  CHECK(error_of(directory.path(), ErrorCode::kUnsupported) ==
        where + ": has only GGUF weights; cpuinfer reads safetensors (fetch the original checkpoint)");
  directory.write("pytorch_model.bin", "");
  CHECK(error_of(directory.path(), ErrorCode::kUnsupported) ==
        where +
            ": has only PyTorch *.bin weights; cpuinfer reads safetensors (save the model again with Transformers: "
            "model.save_pretrained(DIR))");
  directory.write("model-00001-of-00002.safetensors", "");
  CHECK(error_of(directory.path(), ErrorCode::kNotFound) ==
        where +
            ": has model-00001-of-00002.safetensors but no model.safetensors.index.json; fetch the index too (a "
            "single file must be named model.safetensors)");
  // A hub cache whose blob is gone.
  fs::create_symlink("../blobs/gone", directory.path() / "model.safetensors");
  CHECK(error_of(directory.path(), ErrorCode::kNotFound) ==
        where + "/model.safetensors: cannot be opened: No such file or directory");
  fs::remove(directory.path() / "model.safetensors");
  write_shard(directory.path() / "model.safetensors", {});
  CHECK(error_of(directory.path()) == where + ": the weights hold no tensors");
  directory.write("generation_config.json", "[]");
  CHECK(error_of(directory.path()) == where + "/generation_config.json: expected a JSON object, found array");
}

}  // namespace
}  // namespace cpuinfer::checkpoint
