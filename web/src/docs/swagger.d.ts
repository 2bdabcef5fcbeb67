// As much of Swagger UI's bundle as the page uses; the package brings no types.
declare module 'swagger-ui-dist/swagger-ui-bundle.js' {
  interface Options {
    url: string;
    domNode: HTMLElement;
    deepLinking: boolean;
    docExpansion: 'list' | 'full' | 'none';
    defaultModelsExpandDepth: number;
    displayRequestDuration: boolean;
    filter: boolean;
    persistAuthorization: boolean;
    tryItOutEnabled: boolean;
    /** null: the description is not sent to anybody's validator. */
    validatorUrl: null;
  }
  const SwaggerUIBundle: (options: Options) => unknown;
  export default SwaggerUIBundle;
}
