// The bare statement `MERGE a, b ON id STRATEGY ...` in DuckDB's own grammar.
//
// Two rules are added, each as the last choice of where it stands, so that what DuckDB parses today it parses as before:
//   a query: wherever a SELECT may stand; it becomes `SELECT * FROM query(mergeql_query('MERGE ...'))`, which the extension `mergeql` binds;
//   a statement that writes (`MERGE ... INTO t`, and `MERGE INTO t USING ...` without WHEN): DuckDB's own statement that writes it.
// The text between is not read here: it is MergeQL's.

#include "duckdb.hpp"
#include "duckdb/main/extension/extension_loader.hpp"
#include "duckdb/parser/expression/constant_expression.hpp"
#include "duckdb/parser/expression/function_expression.hpp"
#include "duckdb/parser/expression/star_expression.hpp"
#include "duckdb/parser/grammar_extension.hpp"
#include "duckdb/parser/parser.hpp"
#include "duckdb/parser/peg/matcher.hpp"
#include "duckdb/parser/peg/transformer/peg_transformer.hpp"
#include "duckdb/parser/query_node/select_node.hpp"
#include "duckdb/parser/statement/select_statement.hpp"
#include "duckdb/parser/tableref/table_function_ref.hpp"

// In lib.rs.
extern "C" bool mergeql_syntax_sql(const char *statement, size_t length, void *out, void (*give)(void *, const char *, size_t));

namespace {

using namespace duckdb; // NOLINT

//! What the text of a statement becomes.
enum class Kind { QUERY, WRITE };

//! Takes the tokens of one statement of the given kind, up to `;`, the end, or the parenthesis that closes around it.
class TextMatcher : public AtomicMatcher {
public:
	explicit TextMatcher(Kind kind_p) : AtomicMatcher(MatcherType::CUSTOM), kind(kind_p) {
		name = ToString();
	}

	MatcherResult MatchAtomic(MatchState &state) const override {
		auto &tokens = state.token_iterator;
		auto at = tokens.Position();
		if (at >= tokens.Size() || !Is(tokens.GetToken(at), "MERGE")) {
			return MatcherResult::Failure();
		}
		const auto start = tokens.GetToken(at).offset;
		string text;
		idx_t depth = 0;
		idx_t cases = 0;
		bool writes = false;
		for (; at < tokens.Size(); at++) {
			auto &token = tokens.GetToken(at);
			if (token.type == TokenType::TERMINATOR || token.type == TokenType::END_OF_INPUT ||
			    token.type == TokenType::END_OF_INPUT_AUTOCOMPLETE) {
				break;
			}
			if (token.text == "(") {
				depth++;
			} else if (token.text == ")") {
				if (depth == 0) {
					break;
				}
				depth--;
			} else if (depth == 0 && Is(token, "CASE")) {
				cases++;
			} else if (depth == 0 && cases > 0 && Is(token, "END")) {
				cases--;
			} else if (depth == 0 && cases == 0 && Is(token, "WHEN")) {
				// DuckDB's MERGE INTO, whose errors are DuckDB's too.
				return MatcherResult::Failure();
			} else if (depth == 0 && Is(token, "INTO")) {
				writes = true;
			}
			// Comments are gone; every word keeps its place.
			const auto place = token.offset - start;
			if (text.size() < place) {
				if (token.preceded_by_newline) {
					text += '\n';
				}
				text.resize(place, ' ');
			}
			text += token.text;
		}
		if (writes != (kind == Kind::WRITE) || at == tokens.Position() + 1) {
			return MatcherResult::Failure();
		}
		tokens.SetPosition(at);
		state.UpdateMaxTokenIndex();
		if (!state.BuildParseResult()) {
			return MatcherResult::Success();
		}
		const auto length = text.size();
		auto result = state.AllocateParseResult<StringLiteralParseResult>(std::move(text), SpecialStringCharacter::STANDARD,
		                                                                  optional_idx(start), optional_idx(length));
		if (result.HasParseResult()) {
			result.GetParseResult()->SetNameFrom(*this);
		}
		return result;
	}

	SuggestionType AddSuggestionInternal(MatchState &) const override {
		return SuggestionType::MANDATORY;
	}

	string ToString() const override {
		return kind == Kind::QUERY ? "MergeqlQueryText" : "MergeqlWriteText";
	}

	void InitializeFirstSet(MatcherFirstSet &first_set, const GrammarLiteralTable &) const override {
		first_set.class_mask = MatcherTokenClass::WORD;
	}

private:
	static bool Is(const MatcherToken &token, const char *word) {
		return StringUtil::CIEquals(token.text, word);
	}

	Kind kind;
};

const string &TextOf(ParseResult &rule) {
	return rule.Cast<ListParseResult>().GetChild(0).Cast<StringLiteralParseResult>().result;
}

unique_ptr<ParsedExpression> Call(const char *function, unique_ptr<ParsedExpression> argument) {
	vector<unique_ptr<ParsedExpression>> arguments;
	arguments.push_back(std::move(argument));
	return make_uniq<FunctionExpression>(Identifier(function), std::move(arguments));
}

unique_ptr<SelectStatement> Query(const string &text) {
	auto rows = make_uniq<TableFunctionRef>();
	rows->function = Call("query", Call("mergeql_query", ConstantExpression::String(text)));
	auto node = make_uniq<SelectNode>();
	node->select_list.push_back(make_uniq<StarExpression>());
	node->from_table = std::move(rows);
	auto result = make_uniq<SelectStatement>();
	result->node = std::move(node);
	return result;
}

unique_ptr<SQLStatement> Write(const string &text) {
	string sql;
	const auto give = [](void *out, const char *bytes, size_t length) { static_cast<string *>(out)->assign(bytes, length); };
	if (!mergeql_syntax_sql(text.data(), text.size(), &sql, give)) {
		throw ParserException(sql);
	}
	auto parser = Parser::GetBuiltinParser();
	parser.ParseQuery(sql);
	if (parser.statements.size() != 1) {
		throw ParserException("a merge stands for one statement");
	}
	return std::move(parser.statements[0]);
}

template <class RESULT>
grammar_transform_process_function_t Transform(RESULT (*make)(const string &)) {
	return [make](PEGTransformer &transformer, ParseResult &parsed) {
		return transformer.MakeProcess<FinalizeTransformProcess>(
		    transformer, parsed, [make](PEGTransformer &transformer, ParseResult &parsed) {
			    return transformer.MakeResult<RESULT>(make(TextOf(parsed)));
		    });
	};
}

terminal_rule_matcher_factory_t Text(Kind kind) {
	return [kind](const PEGKeywordHelper &) -> unique_ptr<Matcher> { return make_uniq<TextMatcher>(kind); };
}

class Syntax : public GrammarExtension {
public:
	Syntax() : GrammarExtension("mergeql", "MERGE a, b ON key STRATEGY column = strategy, ...") {
	}

	vector<GrammarChange> GetChanges() const override {
		return {
		    GrammarChange::AddRule("MergeqlQueryText <- 'MERGE'"),
		    GrammarChange::AddTerminalRuleOverride("MergeqlQueryText", Text(Kind::QUERY)),
		    GrammarChange::AddRule("MergeqlQuery <- MergeqlQueryText", Transform(Query)),
		    GrammarChange::AddChoice("SelectStatementType", "MergeqlQuery"),
		    GrammarChange::AddRule("MergeqlWriteText <- 'MERGE'"),
		    GrammarChange::AddTerminalRuleOverride("MergeqlWriteText", Text(Kind::WRITE)),
		    GrammarChange::AddRule("MergeqlWrite <- MergeqlWriteText", Transform(Write)),
		    GrammarChange::AddChoice("Statement", "MergeqlWrite"),
		};
	}
};

} // namespace

extern "C" void mergeql_syntax_register(duckdb::ExtensionLoader &loader) {
	duckdb::GrammarExtension::Register(loader.GetDatabaseInstance(), duckdb::make_shared_ptr<Syntax>());
}
