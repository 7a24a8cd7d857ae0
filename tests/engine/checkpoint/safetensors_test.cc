#include "engine/checkpoint/safetensors.h"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <set>

#include "base/format.h"
#include "tests/engine/checkpoint/temporary_directory.h"

namespace cpuinfer::checkpoint {
namespace {

namespace fs = std::filesystem;

std::string length_field(uint64_t length) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes;
}

std::string file_of(const std::string& header, size_t data_bytes) {
  return length_field(header.size()) + header + std::string(data_bytes, 'x');
}

std::string error_of(const std::string& contents, ErrorCode code = ErrorCode::kBadInput) {
  const TemporaryDirectory directory;
  const fs::path path = directory.write("w.safetensors", contents);
  const auto file = SafetensorsFile::open(path);
  REQUIRE_MESSAGE(!file.has_value(), "the file was accepted");
  CHECK(file.error().code == code);
  // Every message begins with the file's path.
  REQUIRE(file.error().message.starts_with(path.string() + ": "));
  return file.error().message.substr(path.string().size() + 2);
}

std::string data_of(const SafetensorsFile& file, const SafetensorsEntry& entry) {
  std::string bytes(static_cast<size_t>(entry.bytes), '?');
  const auto done = file.read(entry.file_offset, std::as_writable_bytes(std::span(bytes)));
  REQUIRE_MESSAGE(done.has_value(), done.error().message);
  return bytes;
}

std::string header_error(const std::string& header, size_t data_bytes, ErrorCode code = ErrorCode::kBadInput) {
  return error_of(file_of(header, data_bytes), code);
}

TEST_CASE("a file with tensors of every kind") {
  const TemporaryDirectory directory;
  // Out of order in the header, a scalar, an empty tensor between two others, padding spaces.
  const fs::path path = directory.write(
      "w.safetensors",
      file_of(R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[14,22]},)"
              R"("scalar":{"dtype":"F16","shape":[],"data_offsets":[12,14]},)"
              R"("empty":{"dtype":"BF16","shape":[0,7,1,1,1,1,1,1],"data_offsets":[12,12]},)"
              R"("a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}   )",
              22));
  const auto file = SafetensorsFile::open(path);
  REQUIRE_MESSAGE(file.has_value(), file.error().message);
  const auto entries = file->entries();
  REQUIRE(entries.size() == 4);
  CHECK(entries[0].name == "a");
  CHECK(entries[0].shape == std::vector<int64_t>{2, 3});
  CHECK(entries[0].dtype == DType::kBF16);
  CHECK(entries[0].bytes == 12);
  CHECK(entries[1].name == "empty");
  CHECK(entries[1].bytes == 0);
  CHECK(entries[2].name == "scalar");
  CHECK(entries[2].dtype == DType::kF16);
  CHECK(entries[2].shape.empty());
  CHECK(entries[3].dtype == DType::kF32);
  CHECK(entries[3].file_offset + entries[3].bytes == file->file_bytes());
  for (const auto& entry : entries) CHECK(data_of(*file, entry) == std::string(static_cast<size_t>(entry.bytes), 'x'));
  file->drop_pages(0, file->file_bytes());
  CHECK(data_of(*file, entries[3]) == "xxxxxxxx");
}

TEST_CASE("a header without tensors is a valid file") {
  const TemporaryDirectory directory;
  const auto file = SafetensorsFile::open(directory.write("w", file_of("{}", 0)));
  REQUIRE(file.has_value());
  CHECK(file->entries().empty());
}

TEST_CASE("length field") {
  const std::string damaged = "; the file is damaged or truncated; fetch it again";
  CHECK(error_of("") == "is 0 bytes long, a safetensors file has at least 8" + damaged);
  CHECK(error_of("1234567") == "is 7 bytes long, a safetensors file has at least 8" + damaged);
  CHECK(error_of(length_field(uint64_t{1} << 63) + "{}") ==
        "the header claims to be 9223372036854775808 bytes long, the limit is 100000000; this is no safetensors file, "
        "or it is damaged");
  CHECK(error_of(length_field(~uint64_t{0}) + "{}").starts_with("the header claims to be 18446744073709551615 bytes"));
  CHECK(error_of(length_field(100'000'001) + "{}").starts_with("the header claims to be 100000001 bytes"));
  CHECK(error_of(length_field(3) + "{}") ==
        "the header claims to be 3 bytes long, the file has 2 after its length field" + damaged);
}

TEST_CASE("the header is checked JSON") {
  CHECK(header_error("", 0) == "the header does not start with '{'");
  CHECK(header_error("[]", 0) == "the header does not start with '{'");
  CHECK(header_error(" {}", 0) == "the header does not start with '{'");
  CHECK(header_error("{\"a\": ", 0).starts_with("header: byte "));
  CHECK(header_error("{} x", 0).starts_with("header: byte "));
  CHECK(header_error(R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
                     R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})",
                     4) == "header: member \"a\" appears twice in one object");
  CHECK(header_error("{\"a\":" + std::string(1'000'000, '['), 0) == "header: nested deeper than 4 levels");
  std::string many = R"({"__metadata__":{},"a":{"shape":[0)";
  for (int i = 0; i < 2'000'000; ++i) many += ",0";
  CHECK(header_error(many + "]}}", 0) == "header: has more than 2000000 values, the most that are read from one text");
  CHECK(header_error("{\"\xff\xfe\":1}", 0).starts_with("header: byte "));  // invalid UTF-8
  CHECK(header_error(R"({"a\u0000b":1})", 0) == R"(tensor "a\u0000b": the name holds a control character)");
  CHECK(header_error(R"({"":1})", 0) == R"(tensor "": the name is empty)");
  CHECK(header_error(R"({"a":1})", 0) == R"(tensor "a": expected an object, found integer)");
  CHECK(header_error("{\"" + std::string(5000, 'n') + "\":1}", 0) ==
        "tensor \"" + std::string(100, 'n') + "...\": expected an object, found integer");
  CHECK(header_error(R"({"__metadata__":[]})", 0) == "__metadata__: expected an object, found array");
  CHECK(header_error(R"({"__metadata__":{"format":1}})", 0) ==
        "__metadata__ \"format\": expected a string, found integer");
}

TEST_CASE("entries") {
  const auto entry_error = [](const std::string& members, size_t data_bytes, ErrorCode code = ErrorCode::kBadInput) {
    const std::string message = header_error("{\"a\":{" + members + "}}", data_bytes, code);
    REQUIRE(message.starts_with("tensor \"a\": "));
    return message.substr(12);
  };
  CHECK(entry_error(R"("shape":[1],"data_offsets":[0,4])", 4) == "dtype: expected a string, found nothing");
  CHECK(entry_error(R"("dtype":7,"shape":[1],"data_offsets":[0,4])", 4) == "dtype: expected a string, found integer");
  CHECK(entry_error(R"("dtype":"BF17","shape":[1],"data_offsets":[0,4])", 4) ==
        "dtype \"BF17\" is not one of the safetensors format");
  CHECK(entry_error(R"("dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4])", 4, ErrorCode::kUnsupported) ==
        "dtype F8_E4M3 is not supported; cpuinfer reads BF16, F16 and F32 (no quantized checkpoints)");
  CHECK(entry_error(R"("dtype":"F32","data_offsets":[0,4])", 4) ==
        "shape: expected an array of integers, found nothing");
  CHECK(entry_error(R"("dtype":"F32","shape":3,"data_offsets":[0,4])", 4) ==
        "shape: expected an array of integers, found integer");
  CHECK(entry_error(R"("dtype":"F32","shape":[0,1,1,1,1,1,1,1,1],"data_offsets":[0,0])", 0) ==
        "shape: has 9 dimensions, expected at most 8");
  std::string long_shape = "1";
  for (int i = 1; i < 1'000'000; ++i) long_shape += ",1";
  CHECK(entry_error(R"("dtype":"F32","data_offsets":[0,4],"shape":[)" + long_shape + "]", 4) ==
        "shape: has 1000000 dimensions, expected at most 8");
  CHECK(entry_error(R"("dtype":"F32","shape":[1,-1],"data_offsets":[0,4])", 4) ==
        "shape[1]: expected an integer from 0 to 2^63 - 1, found -1");
  CHECK(entry_error(R"("dtype":"F32","shape":[1.0],"data_offsets":[0,4])", 4) ==
        "shape[0]: expected an integer from 0 to 2^63 - 1, found 1.0");
  CHECK(entry_error(R"("dtype":"F32","shape":["1"],"data_offsets":[0,4])", 4) ==
        "shape[0]: expected an integer from 0 to 2^63 - 1, found string");
  CHECK(entry_error(R"("dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4])", 4)
            .starts_with("shape[0]: expected an integer from 0 to 2^63 - 1, found 9.22"));
  CHECK(entry_error(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4])", 4) ==
        "shape [4294967296, 4294967296]: the size does not fit 63 bits");
  CHECK(entry_error(R"("dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4])", 4) ==
        "shape [4611686018427387904]: the size does not fit 63 bits");
  CHECK(entry_error(R"("dtype":"F32","shape":[3],"data_offsets":[0,4])", 4) ==
        "shape [3] of F32 needs 12 bytes, data_offsets [0, 4] span 4");
  CHECK(entry_error(R"("dtype":"F32","shape":[1])", 4) == "data_offsets: expected an array of integers, found nothing");
  CHECK(entry_error(R"("dtype":"F32","shape":[1],"data_offsets":[0])", 4) ==
        "data_offsets: expected [begin, end], found 1 numbers");
  CHECK(entry_error(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])", 4) ==
        "data_offsets [4, 0]: the end lies before the begin");
  CHECK(entry_error(R"("dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615])", 4)
            .starts_with("data_offsets[1]: expected an integer"));
  CHECK(entry_error(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])", 7) ==
        "data_offsets [0, 8]: the file has only 7 bytes of data; the file is damaged or truncated; fetch it again");
}

TEST_CASE("tensors cover the data exactly") {
  const auto two = [](int begin_a, int end_a, int begin_b, int end_b) {
    return format(R"({{"a":{{"dtype":"F32","shape":[{}],"data_offsets":[{},{}]}},)"
                  R"("b":{{"dtype":"F32","shape":[{}],"data_offsets":[{},{}]}}}})",
                  (end_a - begin_a) / 4, begin_a, end_a, (end_b - begin_b) / 4, begin_b, end_b);
  };
  CHECK(header_error(two(0, 8, 4, 12), 12) == R"(tensors "a" and "b" overlap at data byte 4)");
  CHECK(header_error(two(0, 8, 0, 8), 8) == R"(tensors "a" and "b" overlap at data byte 0)");
  CHECK(header_error(two(0, 12, 4, 8), 12) == R"(tensors "a" and "b" overlap at data byte 4)");
  CHECK(header_error(two(0, 4, 8, 12), 12) == R"(data bytes 4 to 8, before tensor "b", belong to no tensor)");
  CHECK(header_error(two(4, 8, 8, 12), 12) == R"(data bytes 0 to 4, before tensor "a", belong to no tensor)");
  CHECK(header_error(two(0, 4, 4, 8), 11) == "3 bytes behind the last tensor belong to no tensor");
  CHECK(header_error("{}", 1) == "1 bytes behind the last tensor belong to no tensor");
  CHECK(header_error(two(0, 8, 4, 4), 8) == R"(tensors "a" and "b" overlap at data byte 4)");  // empty, inside another
}

TEST_CASE("what is no regular, readable file") {
  const TemporaryDirectory directory;
  const auto code_and_text = [](const fs::path& path) {
    const auto file = SafetensorsFile::open(path);
    REQUIRE(!file.has_value());
    return std::pair(file.error().code, file.error().message);
  };
  const fs::path missing = directory.path() / "missing";
  CHECK(code_and_text(missing) ==
        std::pair(ErrorCode::kNotFound, missing.string() + ": cannot be opened: No such file or directory"));
  CHECK(code_and_text(directory.path()) ==
        std::pair(ErrorCode::kBadInput, directory.path().string() + ": expected a regular file, found a directory"));
  const fs::path pipe = directory.path() / "pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  CHECK(code_and_text(pipe) ==
        std::pair(ErrorCode::kBadInput, pipe.string() + ": expected a regular file, found a device, pipe or socket"));
}

TEST_CASE("a file that becomes shorter is an error, not short data") {
  const TemporaryDirectory directory;
  const fs::path path = directory.write("f", "0123456789");
  const auto file = InputFile::open(path);
  REQUIRE(file.has_value());
  fs::resize_file(path, 4);
  char out[10];
  const auto read = file->read(0, 10, out);
  REQUIRE(!read.has_value());
  CHECK(read.error().code == ErrorCode::kRuntime);
  CHECK(read.error().message == path.string() + ": cannot read 6 bytes at byte 4: the file has become shorter");
  const auto large = read_whole_file(path, 3);
  REQUIRE(!large.has_value());
  CHECK(large.error().message == path.string() + ": is 4 B long, expected at most 3 B");
}

TEST_CASE("written files read back, are complete at once and leave nothing else") {
  const TemporaryDirectory directory;
  const fs::path path = directory.path() / "out.safetensors";
  std::vector<float> small = {1.5f, -2.5f};
  // Several pieces of 4 MiB, the last one partial, of a length that is no multiple of anything.
  const int64_t large_elements = 5'000'001;
  const auto value_at = [](int64_t i) { return static_cast<uint16_t>(i * 2654435761u >> 7); };
  std::vector<TensorSource> tensors;
  tensors.push_back(tensor_from_bytes("small \"quoted\" \u00e9", DType::kF32, {2, 1}, std::as_bytes(std::span(small))));
  int64_t next_offset = 0;
  tensors.push_back({"large", DType::kBF16, {large_elements}, [&](int64_t offset, std::span<std::byte> out) {
                       CHECK(offset == next_offset);
                       next_offset += static_cast<int64_t>(out.size());
                       REQUIRE(out.size() % 2 == 0);
                       for (size_t i = 0; i < out.size(); i += 2) {
                         const uint16_t value = value_at((offset + static_cast<int64_t>(i)) / 2);
                         std::memcpy(out.data() + i, &value, 2);
                       }
                     }});
  tensors.push_back({"empty", DType::kF16, {3, 0}, [](int64_t, std::span<std::byte>) { FAIL("nothing to fill"); }});
  const auto written = write_safetensors(path, tensors);
  REQUIRE_MESSAGE(written.has_value(), written.error().message);
  CHECK(next_offset == 2 * large_elements);
  CHECK(std::distance(fs::directory_iterator(directory.path()), fs::directory_iterator()) == 1);

  const auto file = SafetensorsFile::open(path);
  REQUIRE_MESSAGE(file.has_value(), file.error().message);
  std::set<std::string> names;
  for (const auto& entry : file->entries()) {
    names.insert(entry.name);
    if (entry.name == "large") {
      CHECK(entry.shape == std::vector<int64_t>{large_elements});
      const std::string data = data_of(*file, entry);
      int64_t wrong = 0;
      for (int64_t i = 0; i < large_elements; ++i) {
        uint16_t value = 0;
        std::memcpy(&value, data.data() + 2 * i, 2);
        wrong += value != value_at(i);
      }
      CHECK(wrong == 0);
      file->drop_pages(entry.file_offset, entry.bytes);
    }
    if (entry.bytes == 8) CHECK(std::memcmp(data_of(*file, entry).data(), small.data(), 8) == 0);
  }
  CHECK(names == std::set<std::string>{"small \"quoted\" \u00e9", "large", "empty"});
  // The reference implementation wants the data aligned to 8 bytes, Transformers the format.
  std::ifstream stream(path, std::ios::binary);
  std::string start(64, '\0');
  stream.read(start.data(), 64);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, start.data(), 8);
  CHECK(header_bytes % 8 == 0);
  CHECK(start.substr(8).starts_with(R"({"__metadata__":{"format":"pt"})"));

  // Writing again replaces the file.
  REQUIRE(write_safetensors(path, std::span(tensors).first(1)).has_value());
  CHECK(SafetensorsFile::open(path)->entries().size() == 1);
}

TEST_CASE("what cannot be written") {
  const TemporaryDirectory directory;
  const fs::path path = directory.path() / "out.safetensors";
  const auto error = [&](std::vector<TensorSource> tensors, ErrorCode code, const fs::path& where) {
    const auto written = write_safetensors(where, tensors);
    REQUIRE(!written.has_value());
    CHECK(written.error().code == code);
    REQUIRE(written.error().message.starts_with(where.string() + ": "));
    CHECK(!fs::exists(where));
    return written.error().message.substr(where.string().size() + 2);
  };
  const auto named = [](std::string name, std::vector<int64_t> shape = {0}) {
    return TensorSource{std::move(name), DType::kBF16, std::move(shape), [](int64_t, std::span<std::byte>) {}};
  };
  const ErrorCode usage = ErrorCode::kUsage;
  CHECK(error({named("a"), named("b"), named("a")}, usage, path) ==
        "two tensors have the name \"a\", or it is reserved");
  CHECK(error({named("__metadata__")}, usage, path) == "two tensors have the name \"__metadata__\", or it is reserved");
  CHECK(error({named("")}, usage, path) == "tensor \"\": the name is empty");
  CHECK(error({named("a\n")}, usage, path) == "tensor \"a\\n\": the name holds a control character");
  CHECK(error({named("a\xff")}, usage, path) == "tensor \"a\uFFFD\": the name is not UTF-8");
  CHECK(error({named("a", std::vector<int64_t>(9, 1))}, usage, path) ==
        "tensor \"a\": has 9 dimensions, expected at most 8");
  CHECK(error({named("a", {2, -1})}, usage, path) == "tensor \"a\": shape [2, -1]: negative size");
  CHECK(error({named("a", {int64_t{1} << 62})}, usage, path) ==
        "tensor \"a\": shape [4611686018427387904]: the size does not fit 63 bits");
  CHECK(error({named("a", {int64_t{1} << 61}), named("b", {int64_t{1} << 61})}, usage, path) ==
        "tensor \"b\": shape [2305843009213693952]: the size does not fit 63 bits");
  CHECK(error({named("a")}, ErrorCode::kNotFound, directory.path() / "missing" / "out") ==
        "creating a temporary file beside it failed: No such file or directory");
  CHECK(fs::is_empty(directory.path()));
  // A directory in the way: the temporary file is removed again.
  fs::create_directories(path / "inside");
  const auto blocked = write_safetensors(path, std::vector{named("a")});
  REQUIRE(!blocked.has_value());
  CHECK(blocked.error().message.starts_with(path.string() + ": renaming into place failed: "));
  CHECK(std::distance(fs::directory_iterator(directory.path()), fs::directory_iterator()) == 1);
}

}  // namespace
}  // namespace cpuinfer::checkpoint
