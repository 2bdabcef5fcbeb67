// The API documentation page: Swagger UI over the server's own description, light or dark as the reader's system is.
// A key that is entered here stays in the page's memory and is gone with it.

import SwaggerUIBundle from 'swagger-ui-dist/swagger-ui-bundle.js';
import 'swagger-ui-dist/swagger-ui.css';
import './docs.css';

const dark = matchMedia('(prefers-color-scheme: dark)');
const follow = () => document.documentElement.classList.toggle('dark-mode', dark.matches);
dark.addEventListener('change', follow);
follow();

const domNode = document.getElementById('docs');
if (domNode) {
  SwaggerUIBundle({
    url: '/openapi.json',
    domNode,
    deepLinking: true,
    docExpansion: 'list',
    defaultModelsExpandDepth: 0,
    displayRequestDuration: true,
    filter: true,
    persistAuthorization: false,
    tryItOutEnabled: false,
    validatorUrl: null,
  });
}
