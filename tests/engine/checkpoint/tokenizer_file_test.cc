// Hostile and foreign tokenizer.json: each is the small tokenizer's with one thing changed.
#include <doctest/doctest.h>

#include <functional>
#include <string>

#include "base/json.h"
#include "engine/checkpoint/tokenizer.h"
#include "tests/engine/checkpoint/tokenizer_data.h"

using namespace cpuinfer;
using namespace cpuinfer::checkpoint;

namespace {

const Json& small_json() {
  static const Json kJson = [] {
    auto json = parse_json(read_text(tokenizer_data() / "small/tokenizer.json"), "small");
    REQUIRE(json);
    return std::move(*json);
  }();
  return kJson;
}

Json& member(Json& object, std::string_view name) {
  for (auto& [key, value] : object.as_object())
    if (key == name) return value;
  FAIL("no member " << name);
  return object;
}

void remove(Json& object, std::string_view name) {
  std::erase_if(object.as_object(), [&](const Json::Member& entry) { return entry.first == name; });
}

// The sentence with which the changed file is refused, or "".
std::string refusal(const std::function<void(Json&)>& change, ErrorCode code, const std::string& config = "") {
  Json json = small_json();
  change(json);
  const auto tokenizer = Tokenizer::parse(to_json_text(json), config, "m");
  if (tokenizer) return "";
  CHECK(tokenizer.error().code == code);
  return tokenizer.error().message;
}

std::string bad(const std::function<void(Json&)>& change) { return refusal(change, ErrorCode::kBadInput); }

std::string unsupported(const std::function<void(Json&)>& change) {
  const std::string message = refusal(change, ErrorCode::kUnsupported);
  const std::string tail = "; cpuinfer reads byte-level BPE as Qwen2 and Qwen3 have it";
  REQUIRE(message.ends_with(tail));
  return message.substr(0, message.size() - tail.size());
}

std::string bad_config(const std::string& config) {
  return refusal([](Json&) {}, ErrorCode::kBadInput, config);
}

Json text_json(const char* text) {
  auto json = parse_json(text, "test");
  REQUIRE(json);
  return std::move(*json);
}

Json& model(Json& json) { return member(json, "model"); }
Json& split(Json& json) { return member(member(json, "pre_tokenizer"), "pretokenizers").as_array()[0]; }
Json& byte_level(Json& json) { return member(member(json, "pre_tokenizer"), "pretokenizers").as_array()[1]; }
Json& added(Json& json, size_t index) { return member(json, "added_tokens").as_array()[index]; }
Json::Array& merges(Json& json) { return member(model(json), "merges").as_array(); }

}  // namespace

TEST_CASE("the unchanged file is accepted") {
  CHECK(bad([](Json&) {}).empty());
}

TEST_CASE("texts that are no tokenizer.json") {
  const auto message = [](std::string_view text) {
    const auto tokenizer = Tokenizer::parse(text, "", "m");
    REQUIRE_FALSE(tokenizer);
    CHECK(tokenizer.error().code == ErrorCode::kBadInput);
    return tokenizer.error().message;
  };
  CHECK(message("[]") == "m/tokenizer.json: expected an object, found array");
  CHECK(message("").starts_with("m/tokenizer.json: "));
  CHECK(message("{\"a\":").starts_with("m/tokenizer.json: "));
  CHECK(message(std::string(1 << 20, '[')) == "m/tokenizer.json: nested deeper than 64 levels");
  CHECK(message("{\"version\":1,\"version\":2}") == "m/tokenizer.json: member \"version\" appears twice in one object");
}

TEST_CASE("another kind of tokenizer is refused by name") {
  CHECK(unsupported([](Json& j) { remove(j, "normalizer"); }) ==
        "m/tokenizer.json: normalizer: expected type \"NFC\", found nothing");
  CHECK(unsupported([](Json& j) { j.set("normalizer", nullptr); }) ==
        "m/tokenizer.json: normalizer: expected type \"NFC\", found null");
  CHECK(unsupported([](Json& j) { j.set("normalizer", text_json(R"({"type":"NFKC"})")); }) ==
        "m/tokenizer.json: normalizer: expected type \"NFC\", found type \"NFKC\"");
  CHECK(unsupported([](Json& j) { j.set("normalizer", text_json(R"([1])")); }) ==
        "m/tokenizer.json: normalizer: expected type \"NFC\", found an array");
  CHECK(unsupported([](Json& j) { j.set("normalizer", text_json(R"({"x":1})")); }) ==
        "m/tokenizer.json: normalizer: expected type \"NFC\", found an object without type");
  CHECK(unsupported([](Json& j) { j.set("pre_tokenizer", text_json(R"({"type":"Metaspace"})")); }) ==
        "m/tokenizer.json: pre_tokenizer: expected a \"Sequence\" of \"Split\" and \"ByteLevel\", found type "
        "\"Metaspace\"");
  CHECK(unsupported([](Json& j) {
          member(member(j, "pre_tokenizer"), "pretokenizers").as_array().pop_back();
        }).starts_with("m/tokenizer.json: pre_tokenizer: expected a \"Sequence\" of"));
  CHECK(unsupported([](Json& j) { split(j).set("type", "Digits"); }) ==
        "m/tokenizer.json: pre_tokenizer: expected \"Split\" first, found type \"Digits\"");
  CHECK(unsupported([](Json& j) { split(j).set("pattern", text_json(R"({"String":" "})")); }) ==
        "m/tokenizer.json: pre_tokenizer: expected a pattern \"Regex\", found an object without type");
  CHECK(unsupported([](Json& j) {
          split(j).set("pattern", text_json(R"({"Regex":"\\s+"})"));
        }).starts_with("m/tokenizer.json: pre_tokenizer: unknown pattern \"\\\\s+\", expected \"(?i:'s|'t|"));
  CHECK(unsupported([](Json& j) { split(j).set("behavior", "Removed"); }) ==
        "m/tokenizer.json: pre_tokenizer: Split behavior \"Removed\", expected \"Isolated\"");
  CHECK(unsupported([](Json& j) { split(j).set("invert", true); }) ==
        "m/tokenizer.json: pre_tokenizer: Split with \"invert\"");
  CHECK(unsupported([](Json& j) { byte_level(j).set("type", "Whitespace"); }) ==
        "m/tokenizer.json: pre_tokenizer: expected type \"ByteLevel\", found type \"Whitespace\"");
  CHECK(unsupported([](Json& j) { byte_level(j).set("add_prefix_space", true); }) ==
        "m/tokenizer.json: pre_tokenizer: ByteLevel add_prefix_space is true, expected false");
  CHECK(unsupported([](Json& j) { remove(byte_level(j), "use_regex"); }) ==
        "m/tokenizer.json: pre_tokenizer: ByteLevel use_regex is nothing, expected false");
  CHECK(unsupported([](Json& j) { j.set("post_processor", text_json(R"({"type":"TemplateProcessing"})")); }) ==
        "m/tokenizer.json: post_processor: expected type \"ByteLevel\", found type \"TemplateProcessing\"");
  CHECK(unsupported([](Json& j) { j.set("decoder", nullptr); }) ==
        "m/tokenizer.json: decoder: expected type \"ByteLevel\", found null");
  CHECK(unsupported([](Json& j) { model(j).set("type", "Unigram"); }) ==
        "m/tokenizer.json: model: expected type \"BPE\", found \"Unigram\"");
  CHECK(unsupported([](Json& j) { model(j).set("dropout", 0.1); }) ==
        "m/tokenizer.json: model: dropout 0.1, expected null");
  CHECK(unsupported([](Json& j) { model(j).set("continuing_subword_prefix", "##"); }) ==
        "m/tokenizer.json: model: continuing_subword_prefix \"##\", expected none");
  CHECK(unsupported([](Json& j) { model(j).set("end_of_word_suffix", "</w>"); }) ==
        "m/tokenizer.json: model: end_of_word_suffix \"</w>\", expected none");
  CHECK(unsupported([](Json& j) { model(j).set("byte_fallback", true); }) ==
        "m/tokenizer.json: model: byte_fallback is true, expected false");
  CHECK(unsupported([](Json& j) { model(j).set("ignore_merges", "yes"); }) ==
        "m/tokenizer.json: model: ignore_merges is \"yes\", expected false");
  for (const std::string flag : {"single_word", "lstrip", "rstrip", "normalized"})
    CHECK(unsupported([&](Json& j) { added(j, 2).set(flag, true); }) ==
          "m/tokenizer.json: added_tokens[2]: \"<|im_end|>\" has \"" + flag + "\": true, expected false");
}

TEST_CASE("what changes no ids is accepted") {
  CHECK(bad([](Json& j) { j.set("post_processor", nullptr); }).empty());
  CHECK(bad([](Json& j) { remove(model(j), "type"); }).empty());
  CHECK(bad([](Json& j) { model(j).set("dropout", 0); }).empty());
  CHECK(bad([](Json& j) { j.set("truncation", text_json(R"({"max_length":512})")); }).empty());
  CHECK(bad([](Json& j) { model(j).set("unk_token", "<|endoftext|>"); }).empty());
  CHECK(bad([](Json& j) { merges(j).clear(); }).empty());
  CHECK(bad([](Json& j) { remove(j, "added_tokens"); }).empty());
}

TEST_CASE("a damaged vocabulary is refused") {
  CHECK(bad([](Json& j) { remove(j, "model"); }) == "m/tokenizer.json: expected an object \"model\", found nothing");
  CHECK(bad([](Json& j) { j.set("model", "x"); }) == "m/tokenizer.json: expected an object \"model\", found \"x\"");
  CHECK(bad([](Json& j) { remove(model(j), "vocab"); }) ==
        "m/tokenizer.json: model.vocab: expected an object of ids, found nothing");
  CHECK(bad([](Json& j) { model(j).set("vocab", text_json("[1]")); }) ==
        "m/tokenizer.json: model.vocab: expected an object of ids, found an array");
  for (const char* id : {"-1", "2097152", "1e30", "9223372036854775807", "1.5", "\"7\"", "null", "true"})
    CHECK(bad([&](Json& j) {
            member(model(j), "vocab").set("zz", text_json(id));
          }).starts_with("m/tokenizer.json: model.vocab[\"zz\"]: expected an id in 0..2097151, found "));
  CHECK(bad([](Json& j) { member(model(j), "vocab").set("zz", 5); }) ==
        "m/tokenizer.json: model.vocab: \"zz\" has id 5, which \"&\" has already");
  CHECK(bad([](Json& j) { member(model(j), "vocab").set("", 9999); }) ==
        "m/tokenizer.json: model.vocab: a token has no text");
  CHECK(bad([](Json& j) { remove(member(model(j), "vocab"), "\u0120"); }) ==
        "m/tokenizer.json: model.vocab: no token \"\u0120\" for byte 0x20: text with it could not be encoded; train "
        "with the whole byte-level alphabet");
  CHECK(bad([](Json& j) { member(model(j), "vocab").set("zz", 2097151); }).empty());
}

TEST_CASE("damaged merges are refused") {
  CHECK(bad([](Json& j) { remove(model(j), "merges"); }) ==
        "m/tokenizer.json: model.merges: expected an array, found nothing");
  for (const char* merge : {"1", "null", "\"ab\"", "\"a b c\"", "[\"a\"]", "[\"a\",\"b\",\"c\"]", "[1,\"a\"]", "{}"})
    CHECK(bad([&](Json& j) {
            merges(j)[3] = text_json(merge);
          }).starts_with("m/tokenizer.json: model.merges[3]: expected [\"a\", \"b\"] or \"a b\", found "));
  CHECK(bad([](Json& j) { merges(j)[0] = text_json(R"(["nope","a"])"); }) ==
        "m/tokenizer.json: model.merges[0]: \"nope\" is not in model.vocab");
  CHECK(bad([](Json& j) { merges(j)[0] = "a nope"; }) ==
        "m/tokenizer.json: model.merges[0]: \"nope\" is not in model.vocab");
  CHECK(bad([](Json& j) { merges(j)[0] = "! !"; }) ==
        "m/tokenizer.json: model.merges[0]: \"!!\" is not in model.vocab");
  CHECK(bad([](Json& j) { merges(j)[0] = " a"; }) == "m/tokenizer.json: model.merges[0]: \"\" is not in model.vocab");
  CHECK(bad([](Json& j) { merges(j)[1] = merges(j)[0]; }).ends_with(" are merged twice"));
  const std::string message = bad([](Json& j) { merges(j)[0] = Json(std::string(1 << 20, 'x') + " a"); });
  CHECK(message.size() < 300);  // hostile text is cut
  CHECK(message.find("xxx...\" is not in model.vocab") != std::string::npos);
}

TEST_CASE("damaged added tokens are refused") {
  CHECK(bad([](Json& j) { j.set("added_tokens", "x"); }) ==
        "m/tokenizer.json: added_tokens: expected an array, found \"x\"");
  const std::string shape =
      "m/tokenizer.json: added_tokens[0]: expected an object with \"content\" (a string) and \"id\"";
  CHECK(bad([](Json& j) { added(j, 0) = 1; }) == shape);
  CHECK(bad([](Json& j) { added(j, 0).set("content", 1); }) == shape);
  CHECK(bad([](Json& j) { remove(added(j, 0), "id"); }) == shape);
  CHECK(bad([](Json& j) { added(j, 0).set("id", -3); }) ==
        "m/tokenizer.json: added_tokens[0]: id: expected an id in 0..2097151, found -3");
  CHECK(bad([](Json& j) { added(j, 0).set("special", "yes"); }) ==
        "m/tokenizer.json: added_tokens[0]: special: expected true or false, found \"yes\"");
  CHECK(bad([](Json& j) { remove(added(j, 0), "lstrip"); }) ==
        "m/tokenizer.json: added_tokens[0]: lstrip: expected true or false, found nothing");
  CHECK(bad([](Json& j) { added(j, 0).set("content", ""); }) ==
        "m/tokenizer.json: added_tokens[0]: a token has no text");
  CHECK(bad([](Json& j) { added(j, 0).set("content", std::string(1024, 'x')); }).empty());
  CHECK(bad([](Json& j) { added(j, 0).set("content", std::string(1025, 'x')); }) ==
        "m/tokenizer.json: added_tokens[0]: \"" + std::string(100, 'x') +
            "...\" has 1025 bytes, expected at most 1024");
  CHECK(bad([](Json& j) { added(j, 1) = added(j, 0); }) ==
        "m/tokenizer.json: added_tokens[1]: \"<|endoftext|>\" is added twice");
  CHECK(bad([](Json& j) { added(j, 0).set("id", 5); }) ==
        "m/tokenizer.json: added_tokens[0]: \"<|endoftext|>\" has id 5, which \"&\" has already");
  // A token of the vocabulary may be added as well, with its own id.
  CHECK(bad([](Json& j) {
          added(j, 0).set("content", "&");
          added(j, 0).set("id", 5);
        }).empty());
  CHECK(bad([](Json& j) {
          added(j, 0).set("content", "&");
        }).starts_with("m/tokenizer.json: added_tokens[0]: \"&\" has id 1400, but model.vocab has it with id 5"));
}

TEST_CASE("tokenizer_config.json is checked, too") {
  CHECK(bad_config("[]") == "m/tokenizer_config.json: expected an object, found array");
  CHECK(bad_config("{").starts_with("m/tokenizer_config.json: "));
  CHECK(bad_config(R"({"eos_token":1})") == "m/tokenizer_config.json: eos_token: expected a string, found 1");
  CHECK(bad_config(R"({"chat_template":1})") == "m/tokenizer_config.json: chat_template: expected a string, found 1");
  CHECK(bad_config(R"({"added_tokens_decoder":1})") ==
        "m/tokenizer_config.json: added_tokens_decoder: expected an object, found 1");
  CHECK(bad_config(R"({"added_tokens_decoder":{"1400":{"content":"<|x|>"}}})") ==
        "m/tokenizer_config.json: added_tokens_decoder[\"1400\"] is \"<|x|>\", but the added token with this id in "
        "tokenizer.json is \"<|endoftext|>\"; save both files with the same program");
  CHECK(bad_config(R"({"added_tokens_decoder":{"7":{"content":"&"}}})").find("is missing;") != std::string::npos);

  const auto parse = [](const char* config) {
    auto tokenizer = Tokenizer::parse(to_json_text(small_json()), config, "m");
    REQUIRE(tokenizer);
    return std::move(*tokenizer);
  };
  CHECK(parse(R"({"eos_token":{"content":"<|im_end|>","lstrip":false}})").eos_token() == "<|im_end|>");
  CHECK(parse(R"({"eos_token":null})").eos_token() == std::nullopt);
  CHECK(parse(R"({"chat_template":[{"name":"tool_use","template":"t"},{"name":"default","template":"d"}]})")
            .chat_template() == "d");
  CHECK(parse(R"({"chat_template":[{"name":"tool_use","template":"t"}]})").chat_template() == std::nullopt);
}

TEST_CASE("both spellings of merges give the same ids") {
  Json json = small_json();
  int changed = 0;
  for (Json& merge : merges(json)) {
    REQUIRE(merge.is_array());
    merge = merge.as_array()[0].as_string() + " " + merge.as_array()[1].as_string();
    ++changed;
  }
  REQUIRE(changed > 1000);
  const auto tokenizer = Tokenizer::parse(to_json_text(json), "", "m");
  REQUIRE(tokenizer);
  const Json cases = read_cases("small_cases.json");
  for (const Json& item : cases.find("encoding")->as_array())
    CHECK(tokenizer->encode(case_text(item)) == ids_of(*item.find("ids")));
}
