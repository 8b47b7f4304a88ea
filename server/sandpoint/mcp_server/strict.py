"""Tools whose arguments mean what they say, and whose schemas and results cost a model little.

The SDK drops unknown arguments, reads "7" as 7 and sends every result twice, once indented. `strict_tool`
builds its `Tool` with a subclass of `FuncMetadata`, the SDK's seam between the wire and the function.
"""

import inspect
import json
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import wraps
from types import new_class
from typing import Any, get_args

from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.context_injection import find_context_parameter
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata, func_metadata
from mcp_types import CallToolResult, InputRequiredResult, TextContent, ToolAnnotations
from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from sandpoint.mcp_server.results import Result


class CompactJsonSchema(GenerateJsonSchema):
    """Schemas without generated titles and without `null`: what is None is left out."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        """Return the schema of what is there when it is there."""
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Leave out defaults that only say "nothing"."""
        described = super().default_schema(schema)
        if described.get("default") in (None, [], {}):
            described.pop("default", None)
        return described

    def field_title_should_be_set(self, schema: object) -> bool:
        """Say no: a title made from the name tells nothing the name does not."""
        return False


def compact_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's schema, with an object at its root and no title."""
    schema = model.model_json_schema(schema_generator=CompactJsonSchema)
    schema.pop("title", None)
    return schema


class StrictMetadata(FuncMetadata):
    """Arguments exactly as the schema says; results as one compact JSON text and the same structure."""

    def validate_arguments(self, arguments_to_validate: dict[str, Any]) -> dict[str, Any]:
        """Return the function's arguments, without the SDK's conversions.

        Raises:
            pydantic.ValidationError: An argument is unknown, missing, or of another type.
        """
        return self.arg_model.model_validate(arguments_to_validate).model_dump_one_level()

    def convert_result(self, result: object) -> CallToolResult | InputRequiredResult:
        """Return the result as the protocol carries it; a question to the user is one already."""
        if isinstance(result, InputRequiredResult):
            return result
        if not isinstance(result, Result):
            raise TypeError(f"a tool returned {type(result).__name__}, not a Result")
        structured = result.model_dump(mode="json")
        text = json.dumps(structured, ensure_ascii=False, separators=(",", ":"))
        return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=structured)


ToolFunction = Callable[..., Awaitable[Result | InputRequiredResult]]


def _without(function: ToolFunction, names: Collection[str]) -> ToolFunction:
    signature = inspect.signature(function, eval_str=True)
    kept = [parameter for name, parameter in signature.parameters.items() if name not in names]
    if len(kept) == len(signature.parameters):
        return function

    @wraps(function)
    async def call(**arguments: Any) -> Result | InputRequiredResult:
        return await function(**arguments)

    vars(call)["__signature__"] = signature.replace(parameters=kept)
    return call


def strict_tool(
    function: ToolFunction,
    *,
    title: str,
    annotations: ToolAnnotations,
    notes: Mapping[str, str],
    without: Collection[str] = (),
) -> Tool:
    """Build a tool from an async function; it has the function's name.

    The model reads its docstring. `notes` are added to the descriptions of the arguments they name: what is
    only known when the server starts. Arguments named by `without` are left out, as if the function had none such.
    """
    function = _without(function, without)
    context = find_context_parameter(function)
    # By the SDK's own way a schema of the arguments and one of the result would be made that nobody is shown.
    checked = func_metadata(function, skip_names=[] if context is None else [context], structured_output=False)
    arguments: type[ArgModelBase] = new_class(
        f"{function.__name__}_arguments",
        (checked.arg_model,),
        exec_body=lambda body: body.update(model_config=ConfigDict(extra="forbid", strict=True)),
    )
    parameters = compact_schema(arguments)
    for name, note in notes.items():
        if argument := parameters["properties"].get(name):
            argument["description"] = f"{argument['description']} {note}"
    result = _result_of(function)
    return Tool(
        fn=function,
        name=function.__name__,
        title=title,
        description=" ".join((function.__doc__ or "").split()),
        parameters=parameters,
        fn_metadata=StrictMetadata(arg_model=arguments, output_model=result, output_schema=compact_schema(result)),
        is_async=True,
        context_kwarg=context,
        annotations=annotations,
    )


def _result_of(function: ToolFunction) -> type[Result]:
    """Return what a tool's function returns, where that is no question to the user."""
    returned = inspect.signature(function, eval_str=True).return_annotation
    results: list[type] = [*(get_args(returned) or (returned,))]
    for each in results:
        if issubclass(each, Result):
            return each
    raise TypeError(f"{function.__name__} returns {returned}, not a Result")
